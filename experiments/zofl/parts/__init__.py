"""Side studies of ZOFL: what theory says, what its papers publish, and how it scales."""
