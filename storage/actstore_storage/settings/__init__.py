"""Settings of a process: frozen dataclasses say what there is, the environment and one TOML file fill them."""
