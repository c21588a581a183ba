"""Decides what should be true: one service per noun, and the reconciler for what crashes, deadlines and timers leave."""
