"""The names of a run's figures for Prometheus, whoever exports them: Ray's agents, or a run without Ray."""

RAY = "ray_"  # what Ray's agents put before every name
PREFIX = "hardshard_"
WORKER = ("run", "rank")
GAUGES = {  # key of a step's record: the metric's name and description
    "step": ("step", "Steps done"),
    "steps": ("steps", "Steps of the whole run"),
    "eta_s": ("eta_seconds", "Seconds until the run ends, at its current speed"),
    "loss": ("loss", "Mean loss of the last steps"),
    "accuracy": ("accuracy", "Mean accuracy of the last steps"),
    "mAP": ("map", "Retrieval mAP of the last evaluation, 0 to 1"),
    "lr": ("learning_rate", "Learning rate"),
    "stage": ("stage", "Stage of the curriculum, from 1 on"),
    "samples_per_s": ("samples_per_second", "Samples a second, of all workers"),
    "step_s": ("step_seconds", "Mean seconds of a step"),
    "wait_s": ("data_wait_seconds", "Mean seconds of a step spent waiting for data"),
    "compute_s": ("compute_seconds", "Mean seconds of a step spent in forward, backward (its all-reduce included) and optimiser"),
    "allreduce_s": ("allreduce_seconds", "Mean seconds of a step during which workers exchanged gradients"),
    "difficulty_s": ("difficulty_seconds", "Seconds that the last difficulty vector took to compute"),
    "version": ("difficulty_version", "Version of the difficulty vector by which the last step's samples were drawn"),
    "age": ("difficulty_age_steps", "Steps since that vector was computed"),
    "due": ("difficulty_due_steps", "Largest age of a vector, in steps, that interval and lag allow"),
}
TOTALS = {  # key of a worker's total since it started: the metric's name and description
    "samples": ("samples", "Samples trained on"),
    "skipped": ("skipped_samples", "Samples that could not be read and were replaced"),
    "gets": ("gets", "GETs from S3 that returned bytes"),
    "bytes": ("read_bytes", "Bytes read from the storage"),
    "hits": ("cache_hits", "Blocks found in the node's cache"),
    "retries": ("get_retries", "Retries of GETs"),
}
DRAWS = ("draws", "Samples drawn, by the decile of their identity's difficulty")
RUN_STEP = ("run_step", "Last step that the run reported")
