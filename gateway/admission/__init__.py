"""Whether and when a request may have a place: the door, its caller's limits, room on a replica, a place in line."""
