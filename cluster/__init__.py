"""Ray and the machines: launching runs, the difficulty actor, progress. Knows neither models nor samples."""
