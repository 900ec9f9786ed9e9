"""Which models exist: specs, versions and where their bytes lie."""
