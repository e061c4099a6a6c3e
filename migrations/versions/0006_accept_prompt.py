"""Accepting a prompt, and finding the caller, as functions: their statements are planned once for each connection.

Adds nothing but the functions: the earlier code goes on working on this schema.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SIGNATURES = (
    "find_caller(uuid, uuid, integer)",
    "accept_prompt(uuid, uuid, uuid, uuid, text, integer, integer, integer, integer, text)",
)

# Rows are locked in the order that holds everywhere: user, usage, room, messages, job. Each statement sees what was
# committed before it began, so the bounds are looked at as they are once the user's row is locked. A refusal is found
# before anything is counted or stored. Plans are kept for as long as the connection lasts, also those made while a
# table was empty: they are to be right for a large one.
ACCEPT_PROMPT = """
CREATE FUNCTION accept_prompt(
    caller_id uuid,
    chatroom_id uuid,
    prompt_id uuid,
    reply_id uuid,
    prompt text,  -- NULL: the prompt is there, and is to be answered once more
    daily_limit integer,
    max_in_flight integer,
    max_backlog integer,
    ring_seconds integer,
    request text,
    OUT outcome text,  -- accepted, or what stands against it
    OUT decided_at timestamptz,
    OUT used_today integer  -- where `outcome` speaks of the daily limit
)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    today CONSTANT date NOT NULL := (now() AT TIME ZONE 'UTC')::date;
    number bytea;
    is_pro boolean;
    charged date;
    newest bigint;
BEGIN
    decided_at := now();

    SELECT number_hash, coalesce(pro_until > now(), false) INTO number, is_pro
    FROM users WHERE id = caller_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        outcome := 'no_account';
        RETURN;
    END IF;

    -- No room goes while its owner's row is locked.
    PERFORM FROM chatrooms WHERE id = chatroom_id AND user_id = caller_id;
    IF NOT FOUND THEN
        outcome := 'no_room';
        RETURN;
    END IF;

    -- Neither is counted further than its bound.
    IF (SELECT count(*) FROM (SELECT FROM reply_jobs WHERE user_id = caller_id LIMIT max_in_flight) AS counted)
        >= max_in_flight
    THEN
        outcome := 'too_many_in_flight';
    ELSIF (SELECT count(*) FROM (SELECT FROM reply_jobs LIMIT max_backlog) AS counted) >= max_backlog THEN
        outcome := 'too_busy';
    END IF;

    IF NOT is_pro THEN
        IF outcome IS NULL THEN
            -- One statement decides and counts: of any number at once, exactly as many pass as are left. The SELECT
            -- yields no row for a limit of 0, which ON CONFLICT alone would let through once a day.
            INSERT INTO daily_usage AS usage (number_hash, day, used)
            SELECT number, today, 1 WHERE daily_limit > 0
            ON CONFLICT (number_hash, day) DO UPDATE SET used = usage.used + 1 WHERE usage.used < daily_limit
            RETURNING usage.day INTO charged;
        END IF;
        IF charged IS NULL THEN
            used_today := coalesce((SELECT used FROM daily_usage WHERE number_hash = number AND day = today), 0);
            -- It is named first: to wait for replies does not help against it.
            IF outcome IS NULL OR used_today >= daily_limit THEN
                outcome := 'daily_limit_reached';
            END IF;
        END IF;
    END IF;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;

    -- The cached list of rooms is outdated by it.
    UPDATE users SET rooms_version = rooms_version + 1 WHERE id = caller_id;
    UPDATE chatrooms
    SET seq = seq + (CASE WHEN prompt IS NULL THEN 1 ELSE 2 END),
        message_count = message_count + (CASE WHEN prompt IS NULL THEN 1 ELSE 2 END),
        updated_at = now(), last_message_at = now(), activity_at = greatest(activity_at, now())
    WHERE id = chatroom_id
    RETURNING seq INTO STRICT newest;

    IF prompt IS NOT NULL THEN
        INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status)
        VALUES (prompt_id, chatroom_id, caller_id, newest - 1, 'user', prompt, 'completed');
    END IF;
    INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, reply_to, charged_day)
    VALUES (reply_id, chatroom_id, caller_id, newest, 'ai', '', 'pending', prompt_id, charged);
    INSERT INTO reply_jobs (message_id, room_id, user_id, seq, ring_at, request_id)
    VALUES (reply_id, chatroom_id, caller_id, newest, now() + make_interval(secs => ring_seconds), request);
    outcome := 'accepted';
END
$$
"""


# Whoever asks gives up after 2 s, and PostgreSQL is to have given up by then: it would go on waiting for a lock.
FIND_CALLER = """
CREATE FUNCTION find_caller(
    caller_id uuid,
    token_session_id uuid,
    token_version integer,
    OUT rooms_version bigint,  -- NULL: the session or the account has ended
    OUT is_pro boolean
)
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET lock_timeout = '1500ms' AS $$
BEGIN
    SELECT account.rooms_version, coalesce(account.pro_until > now(), false) INTO rooms_version, is_pro
    FROM users AS account JOIN sessions AS session ON session.user_id = account.id
    WHERE account.id = caller_id AND session.id = token_session_id
      AND account.disabled_at IS NULL AND account.session_version = token_version;
END
$$
"""


def upgrade() -> None:
    op.execute(FIND_CALLER)
    op.execute(ACCEPT_PROMPT)


def downgrade() -> None:
    for signature in SIGNATURES:
        op.execute(f"DROP FUNCTION {signature}")
