"""Two-tower methods, one file each, behind `two_tower.Matcher`."""
