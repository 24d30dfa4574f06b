"""The Ray cluster that the workers run on: started or joined, checked, and watched until it ends."""
