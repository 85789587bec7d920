"""Every bound and every default, once. Relations between them are asserted at import."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# ---- numbers a user may give ----
INTEGER_MAX: Final = 2**53 - 1
"""Largest integer of the public surface: what every JSON reader can hold exactly."""
NEVER: Final = INTEGER_MAX
"""As `run_at_ms`: parked, claimable only after something moves the flow."""
NAME_BYTES_MAX: Final = 512
"""Ids, types, states, partition keys and workers, in bytes of UTF-8; at least 1."""
PRIORITY_MAX: Final = 2
CLAIM_LIMIT_MAX: Final = 1_000
BATCH_ITEMS_MAX: Final = 1_000
LIST_COUNT_MAX: Final = 1_000
LIST_SCAN_FLOWS: Final = 2_000
"""Cold flows that a shard looks at for one page; if that ends early, it is asked to go on."""
HISTORY_COUNT_MAX: Final = 10_000
MAX_RETRIES_MAX: Final = 1_000
MAX_RECLAIMS_MAX: Final = 1_000_000
BACKOFF_MS_MAX: Final = 30 * 24 * 3_600_000
JITTER_PCT_MAX: Final = 100
RATIO_PCT_MAX: Final = 100
FILTER_NAMES_MAX: Final = 1_000
"""States, partitions or values that one claim, listing or read may name."""
ATTRIBUTES_MAX: Final = 64
ATTRIBUTE_BYTES_MAX: Final = 1 * KIB
"""One attribute value that is a string, in bytes of UTF-8."""
ATTRIBUTES_BYTES_MAX: Final = 16 * KIB
"""All attributes that one command brings, names included."""
ATTRIBUTES_PACKED_BYTES_MAX: Final = ATTRIBUTES_MAX * (NAME_BYTES_MAX + ATTRIBUTE_BYTES_MAX + 8)
"""All attributes of one flow as they lie on disk: what they come to within the limits above."""
NAMED_VALUES_MAX: Final = 100
VALUE_REFS_MAX: Final = 1_000
HISTORY_EVENTS_MAX: Final = 1_000_000
HISTORY_EVENTS_DEFAULT: Final = 10_000
"""Events kept of one flow unless it says otherwise; the oldest go first."""
COUNT_MAX: Final = 2**63 - 1
"""The largest number that a shard gives by itself: to a value, a flow's entry, a post."""
POLICY_STATES_MAX: Final = 1_000
"""States that the stored policy of one type may name."""
POLICY_FIELDS_MAX: Final = 16
"""Entries of any other part of a policy: more than there are fields."""
SHARDS_MAX: Final = 64
VALUE_BYTES_CEILING: Final = 32 * MIB
"""The most that `max_value_bytes` may be set to."""

# ---- defaults of the public surface ----
STATE_DEFAULT: Final = "queued"
LEASE_MS_DEFAULT: Final = 30_000
PAYLOAD_BYTES_DEFAULT: Final = 64 * KIB
RECLAIM_RATIO_DEFAULT: Final = 25
LIST_COUNT_DEFAULT: Final = 100
CLEANUP_LIMIT_DEFAULT: Final = 100
RETENTION_MS_DEFAULT: Final = 7 * 24 * 3_600_000
FAILED_RETENTION_MS_DEFAULT: Final = 30 * 24 * 3_600_000
VALUE_BYTES_DEFAULT: Final = 16 * MIB
SHARDS_DEFAULT_MAX: Final = 8
TIMEOUT_S_DEFAULT: Final = 30.0
MAX_RETRIES_DEFAULT: Final = 3
MAX_RECLAIMS_DEFAULT: Final = 16
BACKOFF_BASE_MS_DEFAULT: Final = 1_000
BACKOFF_MAX_MS_DEFAULT: Final = 30_000
JITTER_PCT_DEFAULT: Final = 20

# ---- the log ----
SEGMENT_BYTES: Final = 64 * MIB
"""A segment is sealed at the first batch boundary past this size."""
SEGMENT_GROW_BYTES: Final = 4 * MIB
"""Disk space is reserved in steps of this size, so that a sync need not write file metadata."""
OPEN_SEGMENTS_MAX: Final = 64
"""Segments that a shard keeps open for reading."""
FRAME_BYTES_MAX: Final = 1_024 * MIB
FRAME_BYTES_SOFT_MAX: Final = 64 * MIB
"""A batch that has grown past this goes on in a further frame, under the same sync."""
BACKUP_HOLD_SECONDS: Final = 1.0
"""How long a backup may hold back what crosses shards; normally it is milliseconds."""
BACKUP_TRIES_MAX: Final = 3
BACKUP_KEEP_SECONDS: Final = 3_600.0
"""How long a shard that cannot link its files keeps them from merges, for a backup to copy them."""
MERGE_DEAD_RATIO: Final = 0.5
"""A file of which so much is dead is merged; so a log is at most about twice what it holds."""
MERGE_SLACK_BYTES: Final = 64 * MIB
"""Of a log that is larger by so much than twice what it holds, merges are no longer leisurely..."""
MERGE_HASTE_BYTES: Final = 64 * MIB
"""...and beyond so much more, nothing is as urgent."""
MERGE_FILES_MIN: Final = 8
"""Neighbours that fit into one segment are merged once there are so many."""
SEAL_BYTES_MIN: Final = 8 * MIB
"""A segment of this size is sealed early if half of it is dead: so a store that is nearly empty
keeps little more than this."""
MERGE_FRAME_BYTES: Final = 256 * KIB
"""A merge writes frames of about this size."""
MERGE_SYNC_BYTES: Final = MIB
"""A merge syncs each time after so many bytes, so that no sync takes long."""
MERGE_SLICE_ENTRIES: Final = 200
"""Entries that a merge copies, or whose new place it notes, in one slice..."""
MERGE_SLICE_TRAIL_BYTES: Final = MIB
"""...which ends earlier past this much of the trails that have to be searched for them."""
MERGE_CLOSE_SLICES: Final = 2_000
"""On closing, a merge whose file has its place already is finished, unless it takes more slices."""
SHORTCUT_SYNC_BYTES: Final = MIB
"""A checkpoint or a hint that is written is synced each time after so many bytes."""
SHORTCUT_BLOCK_BYTES: Final = 256 * KIB
"""A block of a checkpoint or a hint ends at the first flow, fact or value past this size..."""
SHORTCUT_SLICE_ITEMS: Final = 1_000
"""...and has no more than so many of them: it is what one slice writes."""
TABLE_WALK_FLOWS: Final = 50_000
"""A checkpoint lists so many flows at a time."""
CHECKPOINT_LOG_BYTES: Final = 64 * MIB
"""A checkpoint is due when the log has grown by this since the last one..."""
CHECKPOINT_GROWTH_RATIO: Final = 2
"""...and by so many times the size of that, so that checkpoints cost at most half as many bytes as
the log."""
CHECKPOINT_DEAD_RATIO: Final = 1
"""It is due as well when so much of what only a merge after it can remove is dead, in the sizes of
the last one; `CHECKPOINT_LOG_BYTES` at least."""
CHECKPOINT_FILES_MAX: Final = 64
"""And when there are so many small files that only a merge after it can make fewer."""
CHECKPOINT_CLOSE_BYTES: Final = 4 * MIB
"""On closing, one is written if so much of the log would have to be read by the next start..."""
CHECKPOINT_CLOSE_RATIO: Final = 8
"""...and if it is at most so many times that: log takes so much longer to read back than a
checkpoint to write."""
CHECKPOINT_FLOW_BYTES: Final = 400
"""What a flow takes in a checkpoint: about, to estimate one that was never written."""
SCRUB_SLICE_BYTES: Final = 256 * KIB
"""What is verified of a file that no start has read, in one slice."""
UPKEEP_SLICE_SECONDS: Final = 0.002
"""A shard works for itself about so long at a time..."""
UPKEEP_REST_RATIO: Final = 3
"""...and then rests so many times as long, so that three quarters are its callers'."""
UPKEEP_HASTE_RATIO: Final = 4
"""If what is to be done piles up it rests less, and goes on for up to so many times longer."""
UPKEEP_QUIET_SECONDS: Final = 0.02
"""So long after it has served, a shard is taken for busy."""
UPKEEP_IDLE_SECONDS: Final = 1.0
"""How long it rests when there was nothing to do."""
LOCAL_LATE_MS: Final = 10
"""If the thread that wakes a shard in the caller's process is so late, the caller does it."""
COLD_FLOWS_MIN: Final = 20_000
"""Ended flows that a shard keeps in memory; the oldest beyond them become cold."""
COLD_SLACK_FLOWS: Final = 60_000
"""So many more may wait in memory for a moment in which nobody is served."""
COLD_HASTE_FLOWS: Final = 100_000
"""Beyond so many more still, nothing is as urgent as that flows become cold."""
COLD_BATCH_FLOWS: Final = 200
"""Flows that become cold in one slice, and those let go of that wait for the next transaction."""
COLD_BATCH_BYTES: Final = MIB
"""A slice takes no further flow past this size."""
COLD_COMPACT_FLOWS: Final = 100_000
"""After so many have become cold, and most have, the table of flows is made smaller."""
COLD_MAP_BYTES: Final = 64 * MIB
"""What an environment may hold at first; each time that it is full, twice as much."""
COLD_REMAP_ROWS: Final = 500
"""After so many look-ups and new rows, the pages that they touched are given back to the system:
each of them brings its neighbours with it, which count as memory of the process."""
COLD_WAITING_MAX: Final = 5_000
"""Flows let go of that wait for a checkpoint's sync to end, before a transaction waits for it."""
COLD_UNDO_ROWS: Final = 1_000
"""Rows that one transaction undoes at a start..."""
COLD_UNDO_ROWS_MIN: Final = 100
"""...and on a disk that has no room for so many at once."""
COLD_FORGET_ROWS: Final = 500
"""Rows kept aside for that which one transaction forgets: more than it may add."""
COLD_ID_BYTES: Final = 64
"""Of an id, in the key of a listing; flows that are alike in these are sorted when read."""
PROBLEMS_MAX: Final = 100
"""A check of the cold flows ends when it has found so many."""
COLD_VERIFY_ROWS: Final = 50
"""Rows that are verified in one slice, after a start that has kept them."""
COLD_UNCLEAN_ENDS_MAX: Final = 2
"""Ends of the process in a row, before it had verified its rows, that are put down to the
environment."""
RECORD_BYTES_MAX: Final = 384 * KIB
"""No record outgrows this: its names, attributes and references to values are bounded."""
RECORD_NAMES_MAX: Final = 20
"""Names that a record and its event hold, those of attributes, values and groups aside."""
VALUE_CACHE_BYTES: Final = 8 * MIB
"""Recently written values a shard keeps in memory, so that a claim soon after needs no read."""
VALUE_CACHE_ITEM_BYTES_MAX: Final = 4 * KIB
LONG_QUEUE_MIN: Final = 5_000
"""Flows of one type, state and priority from which on further ones are kept packed: it will be a
while before they are asked for."""
RELAXED_SYNC_MS: Final = 50

# ---- the disk ----
DISK_FLOOR_BYTES: Final = 32 * MIB
"""Free space below which a shard takes no creations: the rest is for what ends flows."""
DISK_RESERVE_BYTES: Final = 16 * MIB
"""What each shard keeps beside its log, and gives back once it takes no creations."""
DISK_JOB_RATIO: Final = 0.5
"""What makes room may use so much of what is left on a disk that is full..."""
DISK_JOB_BYTES: Final = MIB
"""...less this; it is tried again when what is left has changed by so much."""
DISK_CHECK_SECONDS: Final = 1.0
"""How often a shard at work looks at its disk."""
DISK_RETRY_MS: Final = 1_000
"""When to try again what a full disk has refused; posts and the sweep wait as long."""

# ---- families ----
CHILDREN_MAX: Final = 1_000
"""Children per group."""
GROUPS_MAX: Final = 64
"""Groups per parent."""
GROUP_NAMES: Final = 4
"""A group's id, where its parent waits, and the two states that it may go to."""
DIGEST_BYTES_MAX: Final = 32
DEPTH_MAX: Final = 32
"""Ancestors that a child may have."""
CASCADE_ITEMS_MAX: Final = 1_000
"""Relatives that one command changes at once; the rest follows through the shard's own outbox."""
SPAWN_MS_MAX: Final = 30_000
"""A fan-out that is not decided after this is aborted: who drove it is gone, or hangs."""
ASK_AGAIN_MS: Final = 5_000
"""How often a shard asks for the outcome of children that are prepared and not decided."""
RESERVED_RETRY_MS: Final = 50
"""When to try a creation again whose id a fan-out has reserved."""
DELIVER_VALUE_BYTES_MAX: Final = 8 * MIB
"""Posts are applied in further commands once one has brought this many bytes of values."""
COLLECT_POSTS_MAX: Final = 1_000
"""Posts that the courier takes from a shard at a time."""
COURIER_TRIES_MAX: Final = 100
"""Failures in a row after which the courier gives up what may be the cause of them."""
SPAWN_TRIES_MAX: Final = 3
"""How often a fan-out is begun whose coordinator forgets it before the decision."""

# ---- between processes ----
WIRE_FRAME_BYTES_MAX: Final = 128 * MIB
"""One request or one answer. Bounds what a client can make a shard hold."""
ANSWER_VALUE_BYTES_MAX: Final = 96 * MIB
"""Values that one answer brings along; further ones are left out and flagged."""
INBOX_REQUESTS_MAX: Final = 4_096
"""Requests that one batch may gather; what is over it waits for the next batch."""
INBOX_WAITING_MAX: Final = 16_384
"""Requests that may wait behind a batch; while there are more, creations are refused."""
OVERLOAD_RETRY_MS: Final = 200
"""When to try a creation again that was refused for want of room."""
RSS_CHECK_SECONDS: Final = 0.25
RSS_TRIM_SECONDS: Final = 10.0
"""How often a shard that holds too much memory tries to give some back to the system."""
RSS_SHARE_DEFAULT: Final = 0.6
"""Of the machine's memory: what all shards together may hold."""
LINK_CREATIONS_MAX: Final = 32_768
"""Unanswered requests at one shard from which on a process's further creations are refused."""
INBOX_BYTES_MAX: Final = 64 * MIB
"""A batch stops gathering past this many bytes of requests."""
LINK_REQUESTS_MAX: Final = 65_536
"""Unanswered requests that one process may have at one shard; over it, `Overloaded`."""
LINK_OUTBOX_BYTES_MAX: Final = 256 * MIB
"""Requests that a shard's socket has not taken yet, in bytes per process and shard."""
CONNECTIONS_MAX: Final = 256
WAITERS_MAX: Final = 10_000
"""Blocked claims that one shard holds."""
PROMISE_MS: Final = 100
"""How long a flow that has become due is kept for the blocked claim that was woken for it."""
ANSWER_BACKLOG_BYTES_MAX: Final = 256 * MIB
"""Answers that a client has not read; past it the shard closes that connection."""
HANDSHAKE_SECONDS_MAX: Final = 10.0
LOCK_SECONDS_MAX: Final = 10.0
"""How long a starting shard waits for a former one to let go of its directory."""
LEFTOVER_SECONDS_MAX: Final = 1.0
"""How long a former host's shard may take to end by itself, before it is killed."""
START_SECONDS_MAX: Final = 900.0
"""How long `open` waits for shards that read back their logs."""
WAIT_SLICE_SECONDS: Final = 1.0
"""For so long a call that blocks the main thread may pass over a signal, such as Ctrl-C."""
SILENT_SECONDS_MAX: Final = 2.0
"""How long attaching waits for a shard that takes the connection and says nothing."""
HOST_REST_SECONDS: Final = 30.0
"""How long a process leaves hosting to others, after none of its shards has started."""
RESTARTS_MAX: Final = 3
"""Failed starts in a row after which a shard answers `ShardUnavailable`."""
RESTART_BACKOFF_MS: Final = 100
SWEEP_ITEMS_MAX: Final = 200
"""Expired flows that a shard removes by itself in one batch..."""
SWEEP_TRAIL_BYTES_MAX: Final = 256 * KIB
"""...and no further one once their trails have this size: each event of a history is counted."""
SWEEP_REST_RATIO: Final = 1
"""...and then none for so many times as long as that took: however much is over at once, half of
the time is its callers'."""
PROBE_KEYS_MAX: Final = 64
"""Claims up to this size over several shards are merged in exact order."""

assert VALUE_BYTES_DEFAULT <= VALUE_BYTES_CEILING < WIRE_FRAME_BYTES_MAX
assert VALUE_BYTES_CEILING <= ANSWER_VALUE_BYTES_MAX < WIRE_FRAME_BYTES_MAX
assert INBOX_BYTES_MAX + WIRE_FRAME_BYTES_MAX < FRAME_BYTES_MAX
assert FRAME_BYTES_SOFT_MAX + 2 * WIRE_FRAME_BYTES_MAX < FRAME_BYTES_MAX
assert (
    ATTRIBUTES_PACKED_BYTES_MAX
    + NAMED_VALUES_MAX * (NAME_BYTES_MAX + 64)
    + GROUPS_MAX * (GROUP_NAMES * NAME_BYTES_MAX + 4 * SHARDS_MAX + DIGEST_BYTES_MAX + 128)
    + RECORD_NAMES_MAX * 4 * NAME_BYTES_MAX
    + 4 * KIB
    < RECORD_BYTES_MAX
), "some names are measured in characters, of up to 4 bytes each"
assert (
    FRAME_BYTES_SOFT_MAX
    + WIRE_FRAME_BYTES_MAX
    + (BATCH_ITEMS_MAX + CASCADE_ITEMS_MAX) * RECORD_BYTES_MAX
    < FRAME_BYTES_MAX
), "a command's values and records fit into the frame that it still goes into"
assert max(CLAIM_LIMIT_MAX, CHILDREN_MAX, LIST_COUNT_MAX) <= BATCH_ITEMS_MAX
assert SEGMENT_BYTES + FRAME_BYTES_MAX < 2**32, "offsets in a segment are 32 bits"
assert SEGMENT_BYTES % SEGMENT_GROW_BYTES == 0
assert SEGMENT_GROW_BYTES <= DISK_RESERVE_BYTES, "the log goes on with what the reserve gives"
assert DISK_FLOOR_BYTES + DISK_RESERVE_BYTES < FRAME_BYTES_MAX
assert COLD_BATCH_FLOWS < COLD_FORGET_ROWS < COLD_WAITING_MAX
assert COLD_ID_BYTES + 64 <= 511, "a key of LMDB has at most 511 bytes"
assert SHARDS_DEFAULT_MAX <= SHARDS_MAX < 256, "a value number carries its shard in 8 bits"
assert LEFTOVER_SECONDS_MAX < LOCK_SECONDS_MAX
assert LIST_COUNT_DEFAULT <= LIST_COUNT_MAX <= LIST_SCAN_FLOWS
assert LINK_CREATIONS_MAX < LINK_REQUESTS_MAX
assert BACKOFF_BASE_MS_DEFAULT <= BACKOFF_MAX_MS_DEFAULT <= BACKOFF_MS_MAX
