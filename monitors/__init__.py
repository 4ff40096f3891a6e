"""What is watched: metrics, profiles and logs."""
