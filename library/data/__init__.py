"""Images and captions: found, checked, planned, cached, and handed out in batches."""
