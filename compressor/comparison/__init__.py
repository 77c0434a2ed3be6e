"""Methods side by side: the same networks, data, sizes and paired test for ours and for its peers."""
