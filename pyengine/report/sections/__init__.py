"""The parts of the page: each file one chapter of the road, each function from a run's data to what is shown."""
