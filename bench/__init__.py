"""What the system takes and gives on a machine, as ratios to yardsticks of the same run: `make bench`."""
