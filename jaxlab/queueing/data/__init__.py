"""Files of stays, daily series made of them, and the data sets that ship with packages."""
