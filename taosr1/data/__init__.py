"""Reads data files (JSON Lines, CSV, parquet, ESCI, a teacher's replies) and checks each row: judgements come out."""
