"""Teacher practice: a scene, simulated pupils with a state in code, and feedback that quotes the teacher's own words.

`scenario` says what a scene is made of, `exchange` what passes between a teacher and the room, `pupils` how the room changes,
`moves` what a teacher did with their words, `feedback` what is told of it, and `rehearsals` keeps it all and wires it.
"""
