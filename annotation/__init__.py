"""Pictures to captions: the Label Studio side."""
