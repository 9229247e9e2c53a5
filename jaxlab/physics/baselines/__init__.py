"""Other ways to physical fields: guidance, residual losses, projection, the value's estimate."""
