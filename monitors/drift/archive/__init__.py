"""The archive of profiles: one file a window, in a folder or in an object store."""
