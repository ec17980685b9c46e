"""Every statement that asyncexp sends, by topic; nothing else holds SQL but `schema`.

| module | what it does to the tables |
|---|---|
| `study` | what all of them need: names, rendering, codecs, the database's clock |
| `setup` | create, check, drop |
| `migrate` | add what is missing, take over PyExperimenter's tables |
| `fill` | add rows |
| `claim` | take rows |
| `flush` | write what workers send, under the fence |
| `settle` | learn what became of a flush whose answer never came |
| `workers` | the sign of life, requests |
| `rights` | try what this user may do |
| `server` | which server this is |
| `life` | reset, delete, retry |
| `read` | counts, rows, logs, errors |
| `look` | how all of it stands, by one scan |
| `detail` | single experiments |
| `lines` | log tables line by line |
"""
