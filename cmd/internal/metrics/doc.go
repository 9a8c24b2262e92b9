// Package metrics says how the backups of this host are, for Prometheus and for
// whoever watches over the daemon itself.
//
//	/metrics   what the daemon knows, in Prometheus' text format
//	/healthz   200 if the daemon's loop is alive and its configuration good; else 503
//	/livez     200 if the loop is alive: start the daemon anew if it is not
//	/readyz    200 if it begins what is due: alive, configured, not stopping, and
//	           with a repository that opens
//
// The three answer JSON with the reasons. Alert rules and a dashboard are in
// Rules and Dashboard.
//
// # From where the numbers come
//
// Gauges are of runs.Status, at the moment of the scrape. Counters and histograms
// are of the book of runs, and go on over a restart: as long as the book holds
// each run that ever ended (Book.Whole: 20,000 runs, 400 days), a new process
// counts them all again and comes to the same numbers. With more runs than that it
// begins with those that ended since it started, which Prometheus takes for a
// counter that was reset; what ended between the last scrape and the kill is then
// not counted. A run that the kill interrupted ends, and counts, in the process
// that comes after. Between two scrapes no more than 20,000 runs can be counted.
//
// # Labels
//
// Names of VMs come from guests' hosts and may be anything: they are made valid
// UTF-8, shortened to 128 characters, and two that are then the same are told
// apart. At most 10,000 VMs, 1,000 jobs and 1,000 repositories have series of their
// own; cairn_vms_omitted says how many VMs have none. All other labels have fixed
// sets of values: a reason of a full read, which is a sentence, becomes one of
// Reasons.
package metrics
