"""What repeats: documents and rows, equal or nearly, and passages that stand in many."""
