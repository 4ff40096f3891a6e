"""Rate, token and concurrency limits of each subject, counted in Redis or in one worker."""
