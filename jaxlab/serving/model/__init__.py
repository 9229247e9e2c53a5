"""The Step-3 model, and every attention layer it is compared with."""
