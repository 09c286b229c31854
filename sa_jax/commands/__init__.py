"""The hosts of the commands: settings, processes, time and progress."""
