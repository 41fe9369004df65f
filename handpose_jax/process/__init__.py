"""What a process needs: memory, threads, compiled programs, other processes, storage."""
