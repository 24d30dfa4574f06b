"""A package, so that its fixtures can be of the package: workers that are up for its tests, and down after them."""
