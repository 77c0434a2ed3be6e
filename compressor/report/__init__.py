"""From a record to text, a page with pictures, and the schema of the record itself."""
