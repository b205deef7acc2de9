"""Has PostgreSQL refuse what the table of moves (`domain.states`) does not let a run do, and note what runs do."""

from __future__ import annotations

from services.scheduler.domain.states import FIRST_RUN_STATES, RUN_TRANSITIONS
from tests.databases import Copy

MOVES = {("", first.value) for first in FIRST_RUN_STATES} | {
    (before.value, after.value) for before, afters in RUN_TRANSITIONS.items() for after in afters
}
"""From one state to another; from none for a run that is made."""
_ALLOWED = ", ".join(f"'{before}>{after}'" for before, after in sorted(MOVES))
_TRIGGERS = f"""
    CREATE TABLE public.run_moves (from_state TEXT, to_state TEXT);
    CREATE FUNCTION public.note_run_move() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE
        before TEXT := CASE WHEN TG_OP = 'INSERT' THEN '' ELSE OLD.state END;
    BEGIN
        IF before || '>' || NEW.state <> ALL (ARRAY[{_ALLOWED}]) THEN
            RAISE EXCEPTION 'a run may not go from "%" to %', before, NEW.state;
        END IF;
        INSERT INTO public.run_moves VALUES (before, NEW.state);
        RETURN NULL;
    END $$;
    CREATE TRIGGER run_made AFTER INSERT ON scheduler.runs FOR EACH ROW EXECUTE FUNCTION public.note_run_move();
    CREATE TRIGGER run_moved AFTER UPDATE OF state ON scheduler.runs FOR EACH ROW
        WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION public.note_run_move();
"""


async def watch_moves(copy: Copy) -> None:
    """Begins it in a database."""
    connection = await copy.server.connect(copy.name)
    try:
        await connection.execute(_TRIGGERS)
    finally:
        await connection.close()


async def moves_seen(copy: Copy) -> set[tuple[str, str]]:
    """What runs of a database have done since."""
    connection = await copy.server.connect(copy.name)
    try:
        rows = await connection.fetch("SELECT DISTINCT from_state, to_state FROM public.run_moves")
    finally:
        await connection.close()
    return {(row["from_state"], row["to_state"]) for row in rows}
