"""What the Makefile runs to set a machine up: standard library only, since it runs before anything is installed."""
