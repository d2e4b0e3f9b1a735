"""A real directory for tests: Debian's slapd on loopback ports, with certificates of its own and a small school in it."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.outside import until

BASE = "dc=school,dc=example"
BOX, BOX_PASSWORD = f"cn=box,{BASE}", "the box's own secret"
GROUPS = f"ou=groups,{BASE}"
SCHEMAS = Path("/etc/ldap/schema")
SLAPD = shutil.which("slapd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

# `allow bind_anon_dn`: a sign-in with a name and an empty password "succeeds" here, as it does in many schools.
CONFIGURATION = """
include {schemas}/core.schema
include {schemas}/cosine.schema
include {schemas}/inetorgperson.schema
include {folder}/active.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload ppolicy
moduleload retcode
pidfile {folder}/slapd.pid
allow bind_anon_dn
TLSCertificateFile {folder}/server.pem
TLSCertificateKeyFile {folder}/server.key
database mdb
maxsize 10485760
suffix "{base}"
rootdn "cn=root,{base}"
rootpw root
directory {folder}/data
overlay ppolicy
ppolicy_default "cn=policy,{base}"
overlay retcode
retcode-parent "{refused}"
{refusals}
access to dn.subtree="{accounts}" attrs=entryUUID by * none
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{box}" read by users none by anonymous auth
"""

# What Active Directory calls things.
ACTIVE = """
attributetype ( 1.3.6.1.4.1.99999.1 NAME 'sAMAccountName' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.99999.2 NAME 'userPrincipalName' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.99999.3 NAME 'userAccountControl' EQUALITY integerMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.99999.4 NAME 'objectGUID' EQUALITY octetStringMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.99999.5 NAME 'memberOf' EQUALITY distinguishedNameMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.12 )
objectclass ( 1.3.6.1.4.1.99999.6 NAME 'user' AUXILIARY
  MAY ( sAMAccountName $ userPrincipalName $ userAccountControl $ objectGUID $ memberOf ) )
"""
ACCOUNTS, REFUSED_ONES = f"ou=accounts,{BASE}", f"ou=refused,{BASE}"  # nobody of the second can bind: each has a reason
TEACHERS = f"cn=Teachers\\, Year 7 (\\C3\\A9t\\C3\\A9),ou=Groups,{BASE}"  # as it is written in the entry
PASSWORD = "everybody's 1"
REFUSALS = ("52e", "530", "531", "532", "533", "701", "773", "775", "999")
REFUSED = "80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data {}, v4563"


def active() -> str:
    """People as Active Directory has them: of control 512, or 514 for who is switched off; and one for each refusal."""
    people = [("ada", 512, ACCOUNTS), ("off", 514, ACCOUNTS)] + [(f"p{data}", 512, REFUSED_ONES) for data in REFUSALS]
    entries = [f"dn: {one}\nobjectClass: organizationalUnit\n" for one in (ACCOUNTS, REFUSED_ONES)]
    for number, (name, control, place) in enumerate(people):
        guid = base64.b64encode(uuid.UUID(int=number + 1).bytes_le).decode()
        entries.append(
            f"dn: cn={name},{place}\nobjectClass: inetOrgPerson\nobjectClass: user\ncn: {name}\nsn: {name}\n"
            f"sAMAccountName: {name}\nuserPrincipalName: {name}@school.example\nuserAccountControl: {control}\n"
            f"objectGUID:: {guid}\nmemberOf: {TEACHERS}\nuserPassword: {PASSWORD}\n"
        )
    # What lies on another server: who looks for somebody is told to ask there.
    entries.append(
        f"dn: ou=elsewhere,{BASE}\nobjectClass: referral\nobjectClass: extensibleObject\nou: elsewhere\n"
        "ref: ldap://127.0.0.1:1/ou=elsewhere,dc=other,dc=example\n"
    )
    return "\n".join(entries)


PEOPLE = [  # uid, password, full name, class, more
    ("ada", "photosynthesis 1", "Ada Byron", "7 B", ""),
    ("grace", "compilers compile", "Grace Hopper", "", ""),
    ("alan", "enigma enigma", "Alan Turing", "7 B", "pwdAccountLockedTime: 000001010000Z\n"),
    ("zoë*(x)", "brackets & stars", "Zoë Star", "9 C", ""),
]


def tree() -> str:
    entries = [
        f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: School\ndc: school\n",
        f"dn: {BOX}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\nuserPassword: {BOX_PASSWORD}\n",
        f"dn: cn=policy,{BASE}\nobjectClass: device\nobjectClass: pwdPolicy\npwdAttribute: userPassword\npwdLockout: TRUE\n",
        f"dn: ou=people,{BASE}\nobjectClass: organizationalUnit\nou: people\n",
        f"dn: {GROUPS}\nobjectClass: organizationalUnit\nou: groups\n",
    ]
    for number, (uid, password, full, group, more) in enumerate(PEOPLE):
        lines = f"employeeNumber: {group}\n" if group else ""
        entries.append(
            f"dn: cn=person {number},ou=people,{BASE}\nobjectClass: inetOrgPerson\ncn: person {number}\nuid: {uid}\n"
            f"sn: {full}\ndisplayName: {full}\nuserPassword: {password}\n{lines}{more}"
        )
    for one in ("one", "two"):  # two entries of one name
        entries.append(
            f"dn: cn={one},{BASE}\nobjectClass: inetOrgPerson\ncn: {one}\nsn: Twin\nuid: twin\nuserPassword: twin twin\n"
        )
    entries.append(f"dn: cn=teachers,{GROUPS}\nobjectClass: groupOfNames\ncn: teachers\nmember: cn=person 1,ou=people,{BASE}\n")
    # Somebody made a group of the same short name in another place: it is not the one that was meant.
    entries.append(f"dn: cn=teachers,{BASE}\nobjectClass: groupOfNames\ncn: teachers\nmember: cn=person 0,ou=people,{BASE}\n")
    return "\n".join([*entries, active()])


@dataclass
class Slapd:
    """`plain`, `tls`: the ports of ldap:// and ldaps://. `ca`: the file with the authority of its certificate."""

    folder: Path
    plain: int
    tls: int
    process: subprocess.Popen[bytes]

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"


@contextlib.contextmanager
def slapd(folder: Path) -> Iterator[Slapd]:
    assert SLAPD
    (folder / "data").mkdir(parents=True)
    write_certificates(folder)
    configuration = folder / "slapd.conf"
    refusals = "\n".join(f'retcode-item "cn=p{one}" 0x31 op=bind text="{REFUSED.format(one)}"' for one in REFUSALS)
    configuration.write_text(
        CONFIGURATION.format(
            schemas=SCHEMAS, folder=folder, base=BASE, box=BOX, accounts=ACCOUNTS, refused=REFUSED_ONES, refusals=refusals
        )
    )
    (folder / "active.schema").write_text(ACTIVE)
    (folder / "tree.ldif").write_text(tree())
    add = [SLAPD.replace("slapd", "slapadd"), "-f", str(configuration), "-l", str(folder / "tree.ldif")]
    subprocess.run(add, check=True, capture_output=True)
    ports = free_port(), free_port()
    urls = f"ldap://127.0.0.1:{ports[0]}/ ldaps://127.0.0.1:{ports[1]}/"
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([SLAPD, "-f", str(configuration), "-h", urls, "-d", "0"], stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or answers(ports[1]), "the start of slapd")
        assert process.poll() is None, (folder / "log").read_text()
        yield Slapd(folder, ports[0], ports[1], process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def change(server: Slapd, *changes: str) -> None:
    """As the school's administrator does it: LDIF of changes."""
    command = ["ldapmodify", "-x", "-D", f"cn=root,{BASE}", "-w", "root", "-H", f"ldap://127.0.0.1:{server.plain}"]
    subprocess.run(command, input="\n\n".join(changes).encode(), check=True, capture_output=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def write_certificates(folder: Path) -> None:
    """ca.pem, server.pem and server.key for localhost and 127.0.0.1, and other.pem: an authority that signed none of them."""
    now = datetime.datetime.now(datetime.UTC)

    def made(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )

    def authority(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = made(name, key).issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
            key, hashes.SHA256()
        ), key

    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key = authority("School CA")
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = made("localhost", key).issuer_name(ca.subject).add_extension(x509.SubjectAlternativeName(names), critical=False)
    for name, certificate in (
        ("ca", ca),
        ("server", server.sign(ca_key, hashes.SHA256())),
        ("other", authority("Other CA")[0]),
    ):
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(private)
