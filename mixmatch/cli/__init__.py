"""The commands: one file each, and what all of them share."""
