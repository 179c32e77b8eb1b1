"""Maximum inner product search behind one protocol, `index.Index`."""
