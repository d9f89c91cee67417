"""The commands of `sgdata`, one file per group."""
