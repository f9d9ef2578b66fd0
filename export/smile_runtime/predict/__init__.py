"""From scans on disk to label maps on disk: one scan, a folder of them, and the command line."""
