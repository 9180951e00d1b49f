"""Files that no job of their owner names any more, or ever did: they go when nobody has touched them for long.

Most files go with the job that named them (`repairs.forget`); these were never named, were young when their job went,
or were left by an edge that died in between.
"""

from edge.services.assets import UNTOUCHED
from edge.services.scene import Scene


async def drop_orphans(scene: Scene) -> int:
    """References untouched for the retention, and at least a day, that no job names; looked for once an hour."""
    if not scene.orphans.due(scene.now()):
        return 0
    age = max(scene.rules.retention, UNTOUCHED)
    rows = await scene.bus.assets.rows()
    old = [key.split(".") for key, row in rows.items() if scene.now() - row.value.touched >= age]
    return sum([len(await scene.assets.release(owner, [sha256], touched_before=True)) for owner, sha256 in old])
