"""What lies in a sweep's folder, safe from crashes."""
