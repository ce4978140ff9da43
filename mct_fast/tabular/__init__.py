"""Tables and time series: columns, features and back, splits by group, recipes of named data."""
