"""Load and measurement: offered load, honest clocks, statistics, reports."""
