"""Floor 1: networks, objectives, the replay ring, the one gradient loop, the driver of long work."""
