"""The servers that are compared; each module is a script that can be run by itself."""
