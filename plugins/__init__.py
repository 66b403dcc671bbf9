"""Everything pluggable; imports only saebench's public API."""
