"""The ground floor: what every system stands on."""
