"""MFU, throughput and intervals: pure arithmetic shared by the live callback and the analysis."""
