"""The commands: each reads its arguments, builds what it needs from `biencoder`, calls it, and returns an exit code."""
