"""What a run tells the world: metrics.jsonl, Weights & Biases, and the terminal."""

from biencoder.tracking.names import Kind
from biencoder.tracking.tracker import Tracker, open_tracker

__all__ = ["Kind", "Tracker", "open_tracker"]
