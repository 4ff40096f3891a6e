"""The archive of profiles: one file for each window, in a folder or in an object store."""
