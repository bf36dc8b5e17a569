"""The daemon's half of the control socket, in one epoll loop: `server` takes connections and makes requests of lines,
`client` is one connection with its request, `peers` says who asks and what they may, `parameters` what may be asked.
The shape of messages is in `control`.
"""
