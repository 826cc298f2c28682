"""The pages of a hub: rendered here, usable without a script and without a network beyond the hub."""
