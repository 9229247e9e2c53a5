"""Methods that ZOFL is compared with, under its interface."""
