"""Methods that the room's own is compared with; all have its interface."""
