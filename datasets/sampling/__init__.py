"""Which samples come next: samplers, the uniform epoch, the difficulty vector in shared memory."""
